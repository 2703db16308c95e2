"""Views: pure functions from state to HTML and SVG. No gradio, no process, no clock; every text is escaped where it enters."""

"""Views: pure functions from state to HTML and SVG, without gradio, processes or a clock.

Every text from outside is escaped where it enters.
"""

"""The pages: gradio's components, wired to runs and views. Nothing is computed here."""

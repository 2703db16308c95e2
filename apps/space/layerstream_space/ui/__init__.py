"""The pages: gradio components wired to the job runner, the planner and the views."""

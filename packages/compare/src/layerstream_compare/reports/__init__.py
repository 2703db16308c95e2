"""What is shown of measurements: figures, tables, drawings and a page."""

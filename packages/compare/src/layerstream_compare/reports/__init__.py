"""Reports of measurements: metrics, tables, drawings and an HTML page."""

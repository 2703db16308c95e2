"""The frozen values that the rooms exchange: options, profiles, plans, reports, the timeline, and sizes as text. No torch."""

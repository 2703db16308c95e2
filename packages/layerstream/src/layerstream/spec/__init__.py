"""The frozen values that the rooms exchange: options, profiles, plans, reports, timeline, sizes. No torch."""

"""The object detector of the Vision Stack. This folder alone links ultralytics, and is AGPL-3.0 for that reason."""

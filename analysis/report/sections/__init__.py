"""What a report shows: each section reads a store and yields its figures with their words."""

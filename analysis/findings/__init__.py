"""The three answers of a report, in sentences made of its tables."""

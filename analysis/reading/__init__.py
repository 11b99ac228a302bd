"""From a trace to the rows that count, in the order asked for: what every scan and study reads."""

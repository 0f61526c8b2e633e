"""Tables, plots, pages and sentences that show results."""

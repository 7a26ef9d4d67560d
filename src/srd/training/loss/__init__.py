"""The loss at response positions: its value and slope in one pass, and what of it changes as training goes on."""

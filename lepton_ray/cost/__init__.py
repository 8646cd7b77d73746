"""What a run will take and has taken: prices, estimates, a meter with a budget, and what stands idle."""

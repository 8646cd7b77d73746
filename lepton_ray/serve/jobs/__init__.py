"""Long predictions that are taken at once and computed afterwards, by whichever replica is there."""

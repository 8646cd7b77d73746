"""From a trained module to a sealed package."""

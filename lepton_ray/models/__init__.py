"""Model families: plain modules, with no engine and no data handling."""

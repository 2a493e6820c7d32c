"""Active learning: train a committee, explore with it, label what it does not know, train again."""

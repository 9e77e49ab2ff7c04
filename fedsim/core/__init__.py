"""Words that every room uses; they know nothing of learning."""

"""Safe ways from one version of a model to the next: copies of traffic first, then a growing share of it."""

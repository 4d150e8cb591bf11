"""What a run or a prediction is about: a problem, its noise, an optimizer and a start, checked together."""

"""The subject of a run or a prediction: a problem, its noise, an optimizer and a start, checked together."""

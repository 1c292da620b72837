"""Deep metric learning with fastpair: data sets, a model, training, run folders and figures, one module each."""

"""Deep convolutional mixtures of images: speed, outliers, draws, clusters, completions."""

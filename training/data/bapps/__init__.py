"""BAPPS, the Berkeley-Adobe perceptual patch similarity data set (Zhang et al. 2018), as a TensorFlow data set without
TensorFlow: `archives` downloads and unpacks the official files, `bapps_dataset_builder` converts them to records."""

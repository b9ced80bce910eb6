"""BAPPS, the Berkeley-Adobe perceptual patch similarity data set (Zhang et al. 2018), as a TensorFlow data set without
TensorFlow: `archives` brings the official files here and unpacks them, `bapps_dataset_builder` makes records of it."""

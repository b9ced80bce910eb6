"""Judged triplets for training: `sources` are where they come from, `feed` makes batches of them, `bapps` builds the
data set of human judgments that LPIPS was trained on."""

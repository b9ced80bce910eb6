"""Operations on arrays: convolution, pooling, resizing, distances of sets, recomputation in the gradient."""

"""Operations on arrays: convolution and pooling, squared distances between sets, recomputation in the gradient."""

"""What a sampler follows: kernels, Stein directions from the target's score, fields between two samples."""

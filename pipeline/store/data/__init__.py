"""The data set: Parquet shards of uint8 images, in memory or streamed."""

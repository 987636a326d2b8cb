"""What exists and where it is kept: encoders, data sets, embeddings, results, the MLflow record."""

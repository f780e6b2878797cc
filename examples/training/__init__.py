"""Makes the training data of the demo's rerankers; `training_data.py` is its command."""

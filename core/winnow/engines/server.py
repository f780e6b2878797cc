"""vLLM servers over HTTP: token ids in, raw logits out, from one or several replicas."""

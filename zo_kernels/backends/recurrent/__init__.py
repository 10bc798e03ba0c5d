"""Forward passes of recurrent language models on the backends: batched torch, the slow reference, CUDA."""

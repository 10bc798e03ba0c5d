"""Recurrent language models on FlashRNN (Pöppel, Beck and Hochreiter, arXiv 2412.07752), forward only.

`zo_kernels.models.FlashLM` is the model. facts and choice choose one of FlashRNN's backends; load imports FlashRNN and
call runs it. members makes the perturbed copies of the parameters, project computes the input projections, and
`backends/recurrent/loss.py` the output projection and the losses. plan divides the work, population runs it, and graph
records it as a CUDA graph.

Shape suffixes: T time, B batch, V vocabulary, E embedding, N heads, D head size (P: of the previous step), H = N * D
hidden size, S states; I input rows, R recurrent rows, G biases of a cell; n probes; M = 2n members, which are the model
at theta + eps * p and theta - eps * p. flashrnn sees the heads of all members as M * N heads, written MN.
"""

"""Recurrent language models through FlashRNN (Pöppel, Beck and Hochreiter, arXiv 2412.07752), forward only.

facts and choice say which of its backends runs and why; load and call run it; members are the perturbed copies of the
parameters, project what lies before the recurrence, `backends/loss.py` what lies behind it; plan cuts the work,
population walks it, graph records it. `zo_kernels.models.FlashLM` is the model.

Shape suffixes: T time, B batch, V vocabulary, E embedding, N heads, D head size (P: of the previous step), H = N * D
hidden size, S states; I input rows, R recurrent rows, G biases of a cell; n probes; M = 2n members: the model at
theta + eps * p and theta - eps * p. To flashrnn members are heads, of which a call has M * N, written MN.
"""

"""Recurrent mixtures with flows (FRMDN): rows of images, speech, forecasts, world models."""

"""The folder of a saved net, on disk or on the Hugging Face Hub; nothing here knows what a net is."""

"""The one model of settings and the layers that it is made from."""

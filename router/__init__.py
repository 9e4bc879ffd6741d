"""The service and the decision. `pipeline.py` is the path of one request; `app.py` builds everything once."""

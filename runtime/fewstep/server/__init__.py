"""An HTTP server for bundles: OpenAI's images API, AUTOMATIC1111's, health, metrics and a web page.

app.py         the FastAPI app; who may ask (guard.py), what is counted (metrics.py)
worker.py      a thread for each generator; which jobs run together (queue.py)
order.py       from what was asked of a model to a job; pictures in and out (pictures.py)
openai_api.py  /v1, its fields (openai_fields.py), and what models are (models.py)
a1111.py       /sdapi/v1, its fields and what it says of images (a1111_fields.py)
run.py         listens, and ends well
"""

import json, sys
import numpy as np, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
about = json.loads(session.get_modelmeta().custom_metadata_map["suture"])
picture, how = Image.open(sys.argv[1]).convert("RGB"), about["preprocess"]
size, shape = how["size"], [int(side * how["resize"] / min(picture.size) + 0.5) for side in picture.size]
picture = picture.resize(shape, Image.Resampling.BICUBIC)
left, top = ((side - size) // 2 for side in picture.size)
pixels = np.asarray(picture.crop((left, top, left + size, top + size)))[None]
scores = session.run(["scores"], {"pixels": pixels})[0][0]
print(about["labels"][scores.argmax()], scores.max())

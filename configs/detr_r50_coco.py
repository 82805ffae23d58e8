"""DETR-R50 on COCO 2017 (Carion et al. 2020), with the paper's batch and schedule of 300 epochs.

    pip install 'jaxformer[coco]'
    python train.py configs/detr_r50_coco.py --workdir runs/detr --init facebook/detr-resnet-50

`coco/` contains the folders train2017, val2017 and annotations. `--init` is a DETR of transformers or a run: the paper
starts from a ResNet-50 for ImageNet, whose frozen norms do not train from random weights. The paper reports an average
precision of 40.6 after 300 epochs, with a backbone that learns at a tenth of the rate. Not run yet.
"""

import jaxformer as jf

TRAIN, VALIDATION = (
    jf.data.CocoDetection(f"coco/{split}2017", f"coco/annotations/instances_{split}2017.json")
    for split in ("train", "val")
)
# The ids of COCO go up to 90, and ten of them are not used.
LABELS = tuple(
    """N/A,person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,N/A,stop sign,
parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,N/A,backpack,umbrella,N/A,N/A,handbag,tie,
suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,
N/A,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,
couch,potted plant,bed,N/A,dining table,N/A,N/A,toilet,N/A,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,
toaster,sink,refrigerator,N/A,book,clock,vase,scissors,teddy bear,hair drier,toothbrush""".replace("\n", "").split(",")
)

experiment = jf.Experiment(
    model=jf.models.Detr(labels=LABELS, image=1344),
    objective=jf.objectives.ObjectDetection(),
    data=jf.data.Data(
        train=TRAIN,
        validation=VALIDATION,
        task=jf.data.LabelledBoxes(
            image=jf.data.ImageField(
                size=1344, fit="pad", shortest=800, resample="bilinear", augmentation=jf.data.ScaleJitter()
            ),
            labels=LABELS,
        ),
        batch=64,
        workers=16,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1e-4), weight_decay=1e-4, clip=0.1, freeze=("^backbone/(stem|stage0)",)
    ),
    steps=554_400,
    evaluation=jf.Evaluation(every=18_480),
    checkpoint=jf.Checkpoint(every=1848, best="ap"),
    log=jf.Log(every=100),
)

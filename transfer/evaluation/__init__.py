"""AP of boxes and masks by COCO's and Pascal VOC's rules."""

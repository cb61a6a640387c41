/**
 * @file
 * @brief A personalised federated recommender for microcontrollers: scores, learns and takes part in a fleet.
 *
 * C99; no allocation; of the C library only string.h and math.h. All memory is the caller's.
 */
#ifndef PFEDREC_PFEDREC_H
#define PFEDREC_PFEDREC_H

#include "best.h"
#include "frame.h"
#include "messages.h"
#include "model.h"
#include "pass.h"
#include "random.h"
#include "score.h"
#include "serial.h"
#include "status.h"
#include "table.h"
#include "taste.h"
#include "update.h"

#endif

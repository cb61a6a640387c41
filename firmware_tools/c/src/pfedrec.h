/**
 * @file
 * @brief For Arduino, which looks for a library's header beside its sources.
 */
#include "../include/pfedrec/pfedrec.h"

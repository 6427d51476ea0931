/* NVML as the sampler speaks it, for machines without a GPU. Its four GPUs are as busy as the file "gpu-load"
   in the working directory says: one percentage for each GPU asked about, separated by blanks; none: idle.
   A percentage below 0 is a GPU that does not tell (as a MIG slice). Signatures: nvml.h. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, COUNT = 4 };
typedef struct { unsigned int gpu, memory; } utilization;

int nvmlInit_v2(void) { return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned int *count) { *count = COUNT; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device)
{
    if (index >= COUNT)
        return INVALID_ARGUMENT;
    const char *closed = getenv("NVML_CLOSED"); /* GPUs of other jobs, in a device cgroup */
    if (closed && strchr(closed, '0' + index))
        return NO_PERMISSION;
    *device = (void *)(uintptr_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device)
{
    unsigned int index;
    if (sscanf(uuid, "GPU-%u", &index) != 1)
        return INVALID_ARGUMENT;
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

int nvmlDeviceGetUtilizationRates(void *device, utilization *told)
{
    int percent = 0;
    FILE *file = fopen("gpu-load", "r");
    for (uintptr_t at = 0; file && at < (uintptr_t)device; at++)
        if (fscanf(file, "%d", &percent) != 1)
            percent = 0;
    if (file)
        fclose(file);
    if (percent < 0)
        return NOT_SUPPORTED;
    told->gpu = told->memory = percent;
    return SUCCESS;
}

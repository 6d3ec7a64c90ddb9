/* A stand-in for libnvidia-ml.so.1 that answers what a text file says, for machines without a GPU.
 *
 *   gcc -shared -fPIC -o libnvidia-ml.so.1 fake_nvml.c      with -DOLD_DRIVER: one that lacks the newer functions
 *
 * FAKE_NVML names the file; it is read by nvmlInit. A line is a key and values; # begins a comment:
 *
 *   init 9                    nvmlInit returns this error
 *   devices 4                 number of GPUs (1)
 *   gone 20 999               from the 20th question about counters on, every one returns this error
 *   0.uuid GPU-12ab           of device 0; without a line: GPU-0000000N-0000-0000-0000-00000000000N
 *   0.name Some card          one word or several
 *   0.handle !4               what asking for the handle returns
 *   0.power 90000 !3          a value for each question in turn, the last one for all that follow; !N returns error N
 *   0.mig 2                   MIG is enabled, with two instances: NVML's numbers 1 and 2, here 0:1 and 0:2
 *   0:1.memory_used 7
 *
 * Counters, in NVML's units: busy memory_busy (%), memory_used memory_total memory_reserved (bytes), power power_limit
 * (mW), temperature, sm_clock memory_clock (MHz), throttle (mask), pcie_tx pcie_rx (KB/s), nvlink_tx nvlink_rx (KiB per
 * second, from which the cumulative counter is made; !N is the field's error), ecc_corrected ecc_uncorrected, processes.
 * FAKE_NVML_LOG names a file that gets a line for each question: the counter and the device.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_LINES = 512, MAX_DEVICES = 64, MAX_INSTANCES = 8, LENGTH = 256 };
enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

typedef struct { char name[16]; int number, instance; } Device; /* instance -1: the card itself */
typedef struct { char key[64], values[LENGTH]; int asked; } Line;

static Line lines[MAX_LINES];
static int line_count, questions, open_count;
static Device cards[MAX_DEVICES], instances[MAX_DEVICES][MAX_INSTANCES];
static struct timespec begin;

static Line *find(const char *name, const char *what) {
    char key[64];
    snprintf(key, sizeof key, "%s%s%s", name, *name ? "." : "", what);
    for (int i = 0; i < line_count; i++)
        if (!strcmp(lines[i].key, key)) return &lines[i];
    return NULL;
}

static long setting(const char *what, long otherwise) {
    Line *line = find("", what);
    return line ? atol(line->values) : otherwise;
}

static void note(const char *what, const char *name) {
    const char *path = getenv("FAKE_NVML_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (!log) return;
    fprintf(log, "%s %s\n", what, name);
    fclose(log);
}

/* The next value of a counter: its error, if the line says so. */
static int ask(const Device *device, const char *what, long long otherwise, long long *value) {
    Line *gone = find("", "gone"), *line = find(device->name, what);
    int from, error;
    note(what, device->name);
    if (!open_count) return UNINITIALIZED;
    questions++;
    if (gone && sscanf(gone->values, "%d %d", &from, &error) == 2 && questions >= from) return error;
    *value = otherwise;
    if (!line) return SUCCESS;
    char text[LENGTH], *rest = NULL, *word, *chosen = NULL;
    strcpy(text, line->values);
    int turn = line->asked++;
    for (word = strtok_r(text, " ", &rest); word && turn-- >= 0; word = strtok_r(NULL, " ", &rest)) chosen = word;
    if (!chosen) return SUCCESS;
    if (*chosen == '!') return atoi(chosen + 1);
    *value = atoll(chosen);
    return SUCCESS;
}

static int ask_uint(const Device *device, const char *what, long long otherwise, unsigned *out) {
    long long value;
    int error = ask(device, what, otherwise, &value);
    if (!error) *out = (unsigned)value;
    return error;
}

int nvmlInitWithFlags(unsigned flags) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char text[LENGTH + 64];
    (void)flags;
    line_count = questions = 0;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    while (file && fgets(text, sizeof text, file) && line_count < MAX_LINES) {
        Line *line = &lines[line_count];
        text[strcspn(text, "#\n")] = 0;
        memset(line, 0, sizeof *line);
        if (sscanf(text, "%63s %255[^\n]", line->key, line->values) >= 1) line_count++;
    }
    if (file) fclose(file);
    for (int i = 0; i < MAX_DEVICES; i++) {
        cards[i] = (Device){.number = i, .instance = -1};
        snprintf(cards[i].name, sizeof cards[i].name, "%d", i);
        for (int j = 0; j < MAX_INSTANCES; j++) {
            instances[i][j] = (Device){.number = i, .instance = j};
            snprintf(instances[i][j].name, sizeof instances[i][j].name, "%d:%d", i, j);
        }
    }
    if (setting("init", 0)) return (int)setting("init", 0);
    open_count++;
    return SUCCESS;
}

int nvmlShutdown(void) { return open_count ? open_count--, SUCCESS : UNINITIALIZED; }

const char *nvmlErrorString(int error) { (void)error; return "an error of the stand-in"; }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)setting("devices", 1); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    long long value;
    if (index >= setting("devices", 1)) return INVALID_ARGUMENT;
    *device = &cards[index];
    return find((*device)->name, "handle") ? ask(*device, "handle", 0, &value) : SUCCESS;
}

int nvmlDeviceGetUUID(const Device *device, char *uuid, unsigned size) {
    Line *line = find(device->name, "uuid");
    int n = device->number;
    if (line) snprintf(uuid, size, "%s", line->values);
    else if (device->instance < 0) snprintf(uuid, size, "GPU-%08x-0000-0000-0000-%012x", n, n);
    else snprintf(uuid, size, "MIG-%08x-0000-0000-0000-%012x", n, device->instance);
    return SUCCESS;
}

int nvmlDeviceGetName(const Device *device, char *name, unsigned size) {
    Line *line = find(device->name, "name");
    snprintf(name, size, "%s", line ? line->values : device->instance < 0 ? "Stand-in" : "Stand-in MIG 1g.5gb");
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(const Device *device, unsigned rates[2]) {
    int error = ask_uint(device, "busy", 50, &rates[0]);
    return device->instance >= 0 ? NOT_SUPPORTED : error ? error : ask_uint(device, "memory_busy", 25, &rates[1]);
}

static int memory(const Device *device, unsigned long long *total, unsigned long long *reserved,
                  unsigned long long *free, unsigned long long *used) {
    long long values[3];
    int error = ask(device, "memory_used", 4000000000LL, &values[0]);
    if (!error) error = ask(device, "memory_total", 16000000000LL, &values[1]);
    if (!error) error = ask(device, "memory_reserved", 0, &values[2]);
    if (error) return error;
    *used = (unsigned long long)values[0], *total = (unsigned long long)values[1];
    *reserved = (unsigned long long)values[2], *free = *total - *used - *reserved;
    return SUCCESS;
}

typedef struct { unsigned long long total, free, used; } Memory;
int nvmlDeviceGetMemoryInfo(const Device *device, Memory *info) {
    unsigned long long reserved;
    int error = memory(device, &info->total, &reserved, &info->free, &info->used);
    if (!error) info->used += reserved; /* as it has been since version 2 of the struct tells them apart */
    return error;
}

int nvmlDeviceGetPowerUsage(const Device *device, unsigned *mw) { return ask_uint(device, "power", 100000, mw); }

int nvmlDeviceGetEnforcedPowerLimit(const Device *device, unsigned *mw) {
    return ask_uint(device, "power_limit", 300000, mw);
}

int nvmlDeviceGetTemperature(const Device *device, int sensor, unsigned *celsius) {
    return sensor ? INVALID_ARGUMENT : ask_uint(device, "temperature", 60, celsius);
}

int nvmlDeviceGetClockInfo(const Device *device, int kind, unsigned *mhz) {
    if (kind == 1) return ask_uint(device, "sm_clock", 1500, mhz);
    return kind == 2 ? ask_uint(device, "memory_clock", 5000, mhz) : INVALID_ARGUMENT;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(const Device *device, unsigned long long *mask) {
    long long value;
    int error = ask(device, "throttle", 0, &value);
    if (!error) *mask = (unsigned long long)value;
    return error;
}

int nvmlDeviceGetPcieThroughput(const Device *device, int direction, unsigned *kb_per_s) {
    return direction ? ask_uint(device, "pcie_rx", 2000, kb_per_s) : ask_uint(device, "pcie_tx", 1000, kb_per_s);
}

int nvmlDeviceGetTotalEccErrors(const Device *device, int kind, int counter, unsigned long long *count) {
    long long value;
    int error = counter ? INVALID_ARGUMENT : ask(device, kind ? "ecc_uncorrected" : "ecc_corrected", 0, &value);
    if (!error) *count = (unsigned long long)value;
    return error;
}

static int processes(const Device *device, unsigned *count, void *infos, size_t size) {
    unsigned there;
    int error = ask_uint(device, "processes", 1, &there);
    if (error) return error;
    if (there > *count) return *count = there, INSUFFICIENT_SIZE;
    if (infos) memset(infos, 0, there * size);
    *count = there;
    return SUCCESS;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;

int nvmlDeviceGetComputeRunningProcesses_v2(const Device *device, unsigned *count, Process *infos) {
    return processes(device, count, infos, sizeof *infos);
}

#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(const Device *device, unsigned *count, Process *infos) {
    return processes(device, count, infos, sizeof *infos);
}

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
int nvmlDeviceGetMemoryInfo_v2(const Device *device, MemoryV2 *info) {
    return memory(device, &info->total, &info->reserved, &info->free, &info->used);
}

typedef struct { unsigned version, sensor; int celsius; } Temperature;
int nvmlDeviceGetTemperatureV(const Device *device, Temperature *info) {
    return nvmlDeviceGetTemperature(device, (int)info->sensor, (unsigned *)&info->celsius);
}

int nvmlDeviceGetCurrentClocksEventReasons(const Device *device, unsigned long long *mask) {
    return nvmlDeviceGetCurrentClocksThrottleReasons(device, mask);
}

typedef struct {
    unsigned field, scope; int64_t timestamp, latency; unsigned type, error; union { double d; uint64_t u; } value;
} Field;
int nvmlDeviceGetFieldValues(const Device *device, int count, Field *fields) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double seconds = (double)(now.tv_sec - begin.tv_sec) + 1e-9 * (double)(now.tv_nsec - begin.tv_nsec);
    for (int i = 0; i < count; i++) {
        long long kib_per_s;
        int is_rx = fields[i].field == 139;
        if ((!is_rx && fields[i].field != 138) || fields[i].scope != UINT32_MAX) return INVALID_ARGUMENT;
        fields[i].error = (unsigned)ask(device, is_rx ? "nvlink_rx" : "nvlink_tx", 0, &kib_per_s);
        fields[i].type = 3; /* unsigned long long */
        if (!fields[i].error) fields[i].value.u = (uint64_t)(1e6 + seconds * (double)kib_per_s);
    }
    return SUCCESS;
}

static int instance_count(const Device *device) {
    Line *line = find(device->name, "mig");
    return line ? atoi(line->values) : -1;
}

int nvmlDeviceGetMigMode(const Device *device, unsigned *current, unsigned *pending) {
    if (instance_count(device) < 0) return NOT_SUPPORTED;
    *current = *pending = 1;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(const Device *device, unsigned *count) {
    (void)device;
    *count = MAX_INSTANCES;
    return SUCCESS;
}

/* The first number stays free, as after an instance was destroyed. */
int nvmlDeviceGetMigDeviceHandleByIndex(const Device *device, unsigned index, Device **instance) {
    if (index == 0 || index >= MAX_INSTANCES || (int)index > instance_count(device)) return NOT_FOUND;
    *instance = &instances[device->number][index];
    return SUCCESS;
}

int nvmlDeviceGetGpuInstanceId(const Device *device, unsigned *id) { return *id = 6 + (unsigned)device->instance, 0; }
int nvmlDeviceGetComputeInstanceId(const Device *device, unsigned *id) { (void)device; return *id = 0, SUCCESS; }
#endif

/* A management library for cards that do not exist, so that the real binding runs without a GPU.
 *
 * It reads the file named by FAKE_NVML_STATE anew at every call; each line is KEY VALUE or KEY CARD VALUE:
 *   init 9            every nvmlInit fails with this code (9 driver not loaded, 18 library and driver differ)
 *   count 2           cards (read at nvmlInit, as the real one does)
 *   name 0 TEXT       product name          uuid 0 TEXT      fails 0 15     every call about that card fails with this code
 *   load 0 97         per cent              ecc 0 3          pid 0 4711     one process on it
 *   mig 0 1           MIG mode              unknown power 1  that kind of question is not supported
 *   hang 1            every question waits until the line is gone
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } rates_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, pci, subsystem; char bus_id[32]; } pci_t;
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } process_t;

static int initialised = 0;
static unsigned count = 0;
static char handles[64];

static int look(const char *key, const char *card, char *value, size_t size)
{
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256], wanted[96];
    int found = 0;
    if (!file) return 0;
    snprintf(wanted, sizeof wanted, card ? "%s %s " : "%s ", key, card);
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, wanted, strlen(wanted))) {
            line[strcspn(line, "\n")] = 0;
            snprintf(value, size, "%s", line + strlen(wanted));
            found = 1;
        }
    fclose(file);
    return found;
}

static int number(const char *key, const char *card, int otherwise)
{
    char value[128];
    return look(key, card, value, sizeof value) ? atoi(value) : otherwise;
}

static const char *card_of(void *handle)
{
    static __thread char text[8];
    snprintf(text, sizeof text, "%d", (int)((char *)handle - handles));
    return text;
}

static int ask(void *handle, const char *kind)
{
    while (number("hang", NULL, 0)) usleep(10000);
    if (!initialised) return UNINITIALIZED;
    if (handle) {
        int fails = number("fails", card_of(handle), OK);
        if (fails) return fails;
    }
    return number("unknown", kind, 0) ? NOT_SUPPORTED : OK;
}

#define ASK(handle, kind) do { int failed = ask(handle, kind); if (failed) return failed; } while (0)

int nvmlInitWithFlags(unsigned flags)
{
    int failed = number("init", NULL, OK);
    (void)flags;
    if (failed) return failed;
    if (!initialised++) count = (unsigned)number("count", NULL, 0);
    return OK;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { if (!initialised) return UNINITIALIZED; initialised--; return OK; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake library"; }

int nvmlSystemGetDriverVersion(char *text, unsigned size) { ASK(NULL, "driver"); snprintf(text, size, "550.54.15"); return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { ASK(NULL, "cuda"); *version = 12040; return OK; }
int nvmlDeviceGetCount_v2(unsigned *found) { ASK(NULL, "count"); *found = count; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle)
{
    if (index >= count || index >= sizeof handles) return INVALID;
    ASK(handles + index, "handle");
    *handle = handles + index;
    return OK;
}

static void uuid_of(void *handle, char *text, size_t size)
{
    if (!look("uuid", card_of(handle), text, size)) snprintf(text, size, "GPU-0000000%s-aaaa-bbbb-cccc-000000000000", card_of(handle));
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle)
{
    char text[96];
    for (unsigned index = 0; index < count; index++) {
        uuid_of(handles + index, text, sizeof text);
        if (strcmp(text, uuid)) continue;
        ASK(handles + index, "handle");
        *handle = handles + index;
        return OK;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) { ASK(handle, "uuid"); uuid_of(handle, text, size); return OK; }

int nvmlDeviceGetName(void *handle, char *text, unsigned size)
{
    ASK(handle, "name");
    if (!look("name", card_of(handle), text, size)) snprintf(text, size, "NVIDIA GeForce RTX 4090");
    return OK;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory)
{
    ASK(handle, "memory");
    memory->total = 24564ULL << 20;
    memory->used = 1024ULL << 20;
    memory->free = memory->total - memory->used;
    return OK;
}

int nvmlDeviceGetPciInfo_v3(void *handle, pci_t *pci)
{
    ASK(handle, "pci");
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:0%s:00.0", card_of(handle));
    return OK;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending)
{
    ASK(handle, "mig");
    *current = *pending = (unsigned)number("mig", card_of(handle), 0);
    return OK;
}

int nvmlDeviceGetUtilizationRates(void *handle, rates_t *rates)
{
    ASK(handle, "load");
    rates->gpu = (unsigned)number("load", card_of(handle), 0);
    rates->memory = 0;
    return OK;
}

int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *celsius) { (void)sensor; ASK(handle, "temperature"); *celsius = 41; return OK; }
int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) { ASK(handle, "power"); *milliwatts = 61000; return OK; }

int nvmlDeviceGetTotalEccErrors(void *handle, unsigned kind, unsigned counter, unsigned long long *errors)
{
    (void)kind;
    (void)counter;
    ASK(handle, "ecc");
    *errors = (unsigned long long)number("ecc", card_of(handle), 0);
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *found, process_t *processes)
{
    int pid;
    ASK(handle, "processes");
    pid = number("pid", card_of(handle), 0);
    if (!pid) { *found = 0; return OK; }
    if (*found < 1) { *found = 1; return TOO_SMALL; }
    *found = 1;
    memset(processes, 0, sizeof *processes);
    processes->pid = (unsigned)pid;
    return OK;
}

/* A management library for cards that do not exist, so that the real binding runs without a GPU.
 *
 * It reads the file named by FAKE_NVML_STATE anew at every call; each line is KEY VALUE or KEY CARD VALUE:
 *   init 9            every nvmlInit fails with this code (9 driver not loaded, 18 library and driver differ)
 *   stale 18          every question fails with this code, as when the driver was replaced under us; nvmlInit as `init` says
 *   count 2           cards (read at nvmlInit, as the real one does); without this line there are 4
 *   name 0 TEXT       product name          uuid 0 TEXT      fails 0 15     every call about that card fails with this code
 *   load 0 97         per cent              ecc 0 3          pid 0 4711     one process on it
 *   used 0 20000      MiB of its memory     driver VERSION   mig 0 2        MIG mode is on, with so many slices (0: off, -1: on with none)
 *   unknown power 1   that kind of question is not supported
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

enum { CARDS = 64, SLICES = 7 };

static int initialised = 0;
static unsigned count = 0;
static char handles[CARDS * (SLICES + 1)]; /* a card at each multiple of SLICES + 1, its slices behind it */

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

static unsigned place_of(void *handle) { return (unsigned)((char *)handle - handles) % (SLICES + 1); }
static void *whole_of(void *handle) { return (char *)handle - place_of(handle); }

static const char *card_of(void *handle)
{
    static __thread char text[16];
    snprintf(text, sizeof text, "%u", (unsigned)((char *)handle - handles) / (SLICES + 1));
    return text;
}

static unsigned slices_of(void *handle)
{
    int told = number("mig", card_of(handle), 0);
    return told < 0 ? 0 : told > SLICES ? SLICES : (unsigned)told;
}

static int ask(void *handle, const char *kind)
{
    while (number("hang", NULL, 0)) usleep(10000);
    if (!initialised) return UNINITIALIZED;
    if (number("stale", NULL, OK)) return number("stale", NULL, OK);
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
    if (!initialised++) count = (unsigned)number("count", NULL, 4);
    return OK;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { if (!initialised) return UNINITIALIZED; initialised--; return OK; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake library"; }

int nvmlSystemGetDriverVersion(char *text, unsigned size) 
{
    ASK(NULL, "driver");
    if (!look("driver", NULL, text, size)) snprintf(text, size, "550.54.15");
    return OK;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) { ASK(NULL, "cuda"); *version = 12040; return OK; }
int nvmlDeviceGetCount_v2(unsigned *found) { ASK(NULL, "count"); *found = count; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle)
{
    if (index >= count || index >= CARDS) return INVALID;
    ASK(handles + index * (SLICES + 1), "handle");
    *handle = handles + index * (SLICES + 1);
    return OK;
}

static void uuid_of(void *handle, char *text, size_t size)
{
    if (place_of(handle))
        snprintf(text, size, "MIG-0000000%s-aaaa-bbbb-cccc-00000000000%u", card_of(handle), place_of(handle) - 1);
    else if (!look("uuid", card_of(handle), text, size))
        snprintf(text, size, "GPU-0000000%s-aaaa-bbbb-cccc-000000000000", card_of(handle));
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle)
{
    char text[96];
    if (!initialised) return UNINITIALIZED;
    for (char *each = handles; each < handles + count * (SLICES + 1); each++) {
        if (place_of(each) > slices_of(each)) continue;
        uuid_of(each, text, sizeof text);
        if (strcmp(text, uuid)) continue;
        ASK(each, "handle");
        *handle = each;
        return OK;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) { ASK(handle, "uuid"); uuid_of(handle, text, size); return OK; }

int nvmlDeviceGetName(void *handle, char *text, unsigned size)
{
    ASK(handle, "name");
    if (!look("name", card_of(handle), text, size)) snprintf(text, size, "NVIDIA GeForce RTX 4090");
    if (place_of(handle)) snprintf(text + strlen(text), size - strlen(text), " MIG 1g.3gb");
    return OK;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory)
{
    ASK(handle, "memory");
    memory->total = (place_of(handle) ? 3072ULL : 24564ULL) << 20;
    memory->used = (unsigned long long)number("used", card_of(handle), place_of(handle) ? 12 : 1024) << 20;
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
    *current = *pending = number("mig", card_of(handle), 0) != 0;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *most) { ASK(handle, "mig"); *most = SLICES; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **slice)
{
    ASK(handle, "mig");
    if (index >= slices_of(handle)) return NOT_FOUND;
    *slice = (char *)handle + 1 + index;
    return OK;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *slice, void **handle) { ASK(slice, "mig"); *handle = whole_of(slice); return OK; }

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor)
{
    ASK(handle, "capability");
    *major = 8;
    *minor = 9;
    return OK;
}

int nvmlDeviceGetUtilizationRates(void *handle, rates_t *rates)
{
    ASK(handle, "load");
    if (place_of(handle)) return NOT_SUPPORTED;
    rates->gpu = (unsigned)number("load", card_of(handle), 0);
    rates->memory = 0;
    return OK;
}

int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *celsius) { (void)sensor; ASK(handle, "temperature"); if (place_of(handle)) return INVALID; *celsius = 41; return OK; }
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
    processes->used = 300ULL << 20;
    return OK;
}

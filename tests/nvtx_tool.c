/* A tool as NVTX loads it (NVIDIA/NVTX, c/include/nvtx3/nvtxDetail/nvtxTypes.h): it gets a table of pointers to the
   function pointers that the calls go through, and writes every push and pop of core2 to a file. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef void (*Function)(void);
typedef struct { size_t size; int (*module)(int, Function ***, unsigned *); } Callbacks;
typedef struct {  /* nvtxEventAttributes_v2 */
    uint16_t version, size; uint32_t category; int32_t color_type; uint32_t color;
    int32_t payload_type, reserved; uint64_t payload; int32_t message_type; const char *message;
} Attributes;
static FILE *out;
static const char *domain_create(const char *name) { return strdup(name); }
static const char *string_register(const char *domain, const char *text) { return strdup(text); }
static int push(const char *domain, const Attributes *a) {
    fprintf(out, "%s push %lld %s\n", domain, a->payload_type ? (long long)a->payload : 0, a->message); return 0; }
static int pop(const char *domain) { fprintf(out, "%s pop\n", domain); return 0; }
int InitializeInjectionNvtx2(const void *(*table)(uint32_t)) {
    const Callbacks *callbacks = table(1);                    /* NVTX_ETID_CALLBACKS */
    Function **core2; unsigned size;
    if (!callbacks || !callbacks->module(5, &core2, &size)) return 0;  /* NVTX_CB_MODULE_CORE2 */
    out = fopen(getenv("NVTX_TEST_OUTPUT"), "w");
    setvbuf(out, NULL, _IOLBF, 0);
    *core2[4] = (Function)push;                               /* NVTX_CBID_CORE2_DomainRangePushEx */
    *core2[5] = (Function)pop;                                /* ..._DomainRangePop */
    *core2[10] = (Function)string_register;                   /* ..._DomainRegisterStringA */
    *core2[12] = (Function)domain_create;                     /* ..._DomainCreateA */
    return 1;
}

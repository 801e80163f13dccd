// After a number of failed attempts, moves the call to the next best target; where none is left, gives
// the last known good answer.
//
// `strategy.h` is generated from the contract in `wit` when the strategy is built. What the host passes
// in is the strategy's to free; nobody frees what it returns but the generated code. An instance
// decides once and is thrown away, so this one frees nothing.

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "strategy.h"

// What the operator may write. The host refuses anything else before it gets here.
static const char SCHEMA[] =
    "{"
    "\"$schema\": \"https://json-schema.org/draft/2020-12/schema\","
    "\"type\": \"object\", \"additionalProperties\": false,"
    "\"properties\": { \"after\": { \"type\": \"integer\", \"minimum\": 1, \"maximum\": 100, \"default\": 2,"
    " \"description\": \"Failed attempts before the call leaves its target.\" } }"
    "}";

static uint32_t after = 2;

// A string of the contract, on the heap, formatted as printf does.
static strategy_string_t text(const char *format, ...) {
    char buffer[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, sizeof buffer, format, arguments);
    va_end(arguments);
    strategy_string_t result;
    strategy_string_dup(&result, buffer);
    return result;
}

void exports_backstop_strategy_policy_metadata(exports_backstop_strategy_policy_info_t *ret) {
    static const char *const KINDS[] = {"ConnectionError", "TimeoutError", "ServiceUnavailable"};
    const size_t kinds = sizeof KINDS / sizeof *KINDS;
    memset(ret, 0, sizeof *ret);
    ret->name = text("next-best");
    ret->version = text("0.1.0");
    ret->description = text("Moves a call that keeps failing to the next best target, or to the last known good answer.");
    ret->level = text("service");
    ret->default_priority = 90;
    ret->kinds.ptr = calloc(kinds, sizeof *ret->kinds.ptr);
    ret->kinds.len = kinds;
    for (size_t i = 0; i < kinds; i++) ret->kinds.ptr[i] = text("%s", KINDS[i]);
    strategy_string_dup(&ret->config_schema, SCHEMA);
}

// To refuse a configuration, set `err` to a sentence that says why and return false.
bool exports_backstop_strategy_policy_configure(strategy_string_t *config, strategy_string_t *err) {
    (void)err;
    // By the schema it is `{}` or `{"after": NUMBER}`: the only digits are the number's.
    char digits[4] = {0};
    for (size_t i = 0, n = 0; i < config->len && n < sizeof digits - 1; i++) {
        const char c = (char)config->ptr[i];
        if (c >= '0' && c <= '9') digits[n++] = c;
    }
    if (*digits) after = (uint32_t)strtoul(digits, NULL, 10);
    return true;
}

bool exports_backstop_strategy_policy_condition(exports_backstop_strategy_policy_failure_t *failure) {
    return failure->attempts >= after;
}

void exports_backstop_strategy_policy_action(exports_backstop_strategy_policy_failure_t *failure,
                                             exports_backstop_strategy_policy_decision_t *ret) {
    const uint32_t attempts = failure->attempts;
    memset(ret, 0, sizeof *ret);

    // The list is sorted: best priority first.
    backstop_strategy_targets_list_target_t list;
    backstop_strategy_targets_snapshot(&list);
    for (size_t i = 0; i < list.len; i++) {
        const backstop_strategy_targets_target_t *target = &list.ptr[i];
        if (target->standing != (BACKSTOP_STRATEGY_TARGETS_STANDING_HEALTHY | BACKSTOP_STRATEGY_TARGETS_STANDING_ADMITTED))
            continue;
        strategy_string_t present;
        backstop_strategy_call_target(&present);
        strategy_string_t line =
            text("%.*s is left after %" PRIu32 " attempts", (int)present.len, (const char *)present.ptr, attempts);
        backstop_strategy_log_write(BACKSTOP_STRATEGY_LOG_LEVEL_INFO, &line);

        ret->action.tag = BACKSTOP_STRATEGY_TYPES_ACTION_SWITCH_TARGET;
        ret->action.val.switch_target.target.is_some = true;
        ret->action.val.switch_target.target.val = target->name;
        ret->reason = text("%.*s is the next best after %" PRIu32 " attempts", (int)target->name.len,
                           (const char *)target->name.ptr, attempts);
        return;
    }

    backstop_strategy_last_known_good_entry_t known;
    if (backstop_strategy_last_known_good_find(&known)) {
        ret->action.tag = BACKSTOP_STRATEGY_TYPES_ACTION_ANSWER;
        ret->action.val.answer.source = BACKSTOP_STRATEGY_TYPES_ANSWER_SOURCE_LAST_KNOWN_GOOD;
        ret->reason = text("no target is left, an answer of %" PRIu64 " s ago is", known.age / 1000);
        return;
    }
    ret->action.tag = BACKSTOP_STRATEGY_TYPES_ACTION_DECLINE;
}

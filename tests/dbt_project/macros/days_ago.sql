-- Days, with their fraction, from a naive UTC timestamp to the moment of the build.
{% macro days_ago(moment) -%}
    date_diff('second', {{ moment }}, current_timestamp at time zone 'UTC') / 86400
{%- endmacro %}
